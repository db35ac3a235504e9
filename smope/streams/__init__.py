"""Streams: image sources cut into class-incremental tasks, one source a file
(`smope.streams.digits`, ...).

`smope.streams.stream` holds what they share: `ImageSet` and `Source` (what a source file returns
from `load`) and `build_stream`, which turns a source into tasks. Importing this package imports
none of them.
"""
