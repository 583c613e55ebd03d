"""The presets: YAML files named for what they configure."""
