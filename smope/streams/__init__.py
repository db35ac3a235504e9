"""Streams of tasks from image data sets.

Each source of images is one file, such as `smope.streams.digits`, with a function `load` that
returns a `smope.streams.source.Source`. `smope.streams.stream.build_stream` divides a source into
tasks. Importing this package imports none of them.
"""
