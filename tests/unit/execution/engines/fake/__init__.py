"""An engine that ends in whichever way it is told to."""
