"""The command line: options and printing, nothing else; one module a command."""
