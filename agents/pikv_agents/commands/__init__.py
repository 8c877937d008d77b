"""One module per `pikv` subcommand; heavy imports happen inside `run` only."""
