"""The smallest whole engine: copy a buffer, and predict how long it takes."""
