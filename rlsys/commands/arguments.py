"""Help texts of arguments that several commands share."""

CONFIG_HELP = "A YAML file, or the name of a bundled config (`rlsys check-config --help` lists them)."
OVERRIDES_HELP = "Overrides of single config keys as section.key=value; the value is parsed as YAML."
RESUME_HELP = "A checkpoint to resume from, or a run folder, which resumes from its newest checkpoint."
