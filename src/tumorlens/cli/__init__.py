"""The command line: it parses, calls one stage, and prints."""
