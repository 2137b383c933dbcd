"""The lab: what it takes to train, measure and compare what the subject builds. `mrla` is its command line."""
