"""Engines: one paper each, found by name through the registry or an entry point."""
