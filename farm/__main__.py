"""Where `farm` begins: Ctrl-C while the CLI itself is still being loaded ends without a traceback too."""

import sys

INTERRUPTED = 130


def main() -> None:
    try:
        from farm.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
