"""The programs of a guest: `first` and `start` boot it, `agent` carries out what the host asks."""
