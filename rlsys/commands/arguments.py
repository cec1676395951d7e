"""Help of the arguments that several commands share."""

CONFIG_HELP = "A YAML file, or the name of a bundled config (`rlsys check-config --help` lists them)."
OVERRIDES_HELP = "section.key=value, laid over the file; the value is YAML."
