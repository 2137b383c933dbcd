"""The lab: what trains, measures and compares what the subject builds. `mrla` is its command line."""
