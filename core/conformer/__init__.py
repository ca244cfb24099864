"""The Conformer, one file a part: what it computes, what can be cut, what it costs."""
