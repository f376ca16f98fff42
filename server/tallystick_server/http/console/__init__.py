"""The console: pages for people who operate the platform. It is a client of the public calls, with
the token of the person, and reaches no database.
"""
