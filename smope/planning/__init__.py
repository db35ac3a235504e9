"""What a run will take: counted from its configuration, measured for a few seconds, or told from
other hardware.
"""
