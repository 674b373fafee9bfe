"""`python -m attar`, and with it `torchrun -m attar`."""

from attar.cli import run

if __name__ == "__main__":
    run()
