"""The entry of `python -m capsule_sweeps` and of the script `capsule-sweeps`."""

# PYTHON_ARGCOMPLETE_OK

from capsule_sweeps.cli.main import main

if __name__ == "__main__":
    main()
