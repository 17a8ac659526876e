"""`python -m gwcore`"""

from gwcore.cli import main

if __name__ == "__main__":
    main()
