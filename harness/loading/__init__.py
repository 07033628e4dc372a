"""From the text of a YAML file to checked data: every value with its place, every mistake with its line."""
