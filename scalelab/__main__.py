"""``python -m scalelab`` is the ``scalelab`` command."""

from scalelab.cli.main import run

if __name__ == "__main__":
    run()
