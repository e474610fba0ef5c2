"""`python -m kyogo.cli`: the command line of this very interpreter; worker processes are started so."""

from kyogo.cli.app import main

if __name__ == "__main__":
    main()
