"""Training in a child process, so that what ends a process does not end a run."""
