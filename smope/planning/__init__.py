"""What a run will take: counted from its configuration, measured here, or estimated for
hardware.
"""
