"""Hyper-parameters searched on the first tasks of a stream: what is searched, how it is judged,
what is kept of it.
"""
