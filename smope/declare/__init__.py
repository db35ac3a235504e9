"""What a constructor's signature says about its arguments, beside their types.

A signature is the schema of a group in conf/: `smope.config` reads it from the source and checks
values by it before torch is imported. This room imports nothing, so every other room may use it.
"""
