"""One module a verb, each imported only when its verb is asked for; `run(args)` returns the exit code."""
