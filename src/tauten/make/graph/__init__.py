"""A module seen as groups of channels that must go together.

::

    export   module -> ATen program                     trace    program -> ids of elements that are one channel
    rules/   what each operation does to them           coupling ids -> units and groups, as index maps
    norms    modules that average over channels         sizes    attributes that hold a number of channels
    slim     takes units out, in truth or by zeros      prove    holds the one against the other

The property that all of it stands on: the smaller module answers as the original does with zeros in every entry that
the removed units hold, in producers and consumers alike (a layer norm over channels: taken over the kept ones).
"""
