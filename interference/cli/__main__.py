"""`python -m interference.cli`, as torchrun and accelerate start it."""

from interference.cli import main

if __name__ == "__main__":
    main()
