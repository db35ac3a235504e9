"""From YAML files and command-line overrides to a validated configuration, before torch is
imported.
"""
