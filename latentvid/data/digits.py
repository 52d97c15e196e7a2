"""`python -m latentvid.data.digits`: the name that scripts know of the program in latentvid/demo/digits.py."""

if __name__ == "__main__":
    from ..commands import digits

    digits()
