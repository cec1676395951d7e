#!/bin/sh
# Prints the Python that this cluster's workers run on, for the entrypoint of a submitted job.
# The PATH of a job is that of whoever started the node, which need not lead to the cluster's own
# environment. Ray's node process has the workers' command on its command line, and a job's shell
# descends from it.
if [ -n "$RLSYS_PYTHON" ]; then
    echo "$RLSYS_PYTHON"
    exit
fi
pid=$PPID
while [ "${pid:-0}" -gt 1 ]; do
    found=$(tr '\0' '\n' <"/proc/$pid/cmdline" | sed -n 's/^--python_worker_command=\([^ ]*\).*/\1/p')
    if [ -x "$found" ]; then
        echo "$found"
        exit
    fi
    pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
command -v python3
