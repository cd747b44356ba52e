"""The command `tumorlens`, also as `python -m tumorlens`.

What it needs is imported inside: Ctrl-C in the moment that takes is a stop like any.
"""

import sys


def main() -> int:
    """Run the command line and return the exit status."""
    try:
        from tumorlens.cli import app
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    return app.main()


if __name__ == "__main__":
    sys.exit(main())
