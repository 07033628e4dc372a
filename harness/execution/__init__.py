"""What happens to one trial: the process it runs in, what that process is given, and what it leaves behind."""
