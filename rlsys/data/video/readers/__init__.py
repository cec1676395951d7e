"""Video files -> times and frames: by PyAV, or by decord where that is provably right.

- `av_reader` (`probe`, `read`): times of all frames from headers and packets, and frames of given times
- `decord_reader` (`read`): the same frames, faster, of files for which `fast_path` finds no reason against it
- `containers` (`head_of`, `shortfall`): what is missing of a truncated file, and what a file begins with
"""
