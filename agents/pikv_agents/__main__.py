"""`python -m pikv_agents` is the `pikv` command."""

from pikv_agents.cli import entry

if __name__ == "__main__":
    entry()
