"""The command line: one thin file per verb, listed in `app.py`.

It knows how to read arguments and print answers, and nothing else.
"""
