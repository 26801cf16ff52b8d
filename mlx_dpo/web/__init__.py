"""The local page on which a person makes preference data: a server on this machine, and what the browser loads."""
