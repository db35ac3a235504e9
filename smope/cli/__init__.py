"""The `smope` command: main.py finds the subcommand, every other file is one."""
