"""Own fast paths through a network, each proven against the library's plain path before it is used.

Nothing of another library is copied or replaced: what is faster than the library goes in through an
extension point that it documents (its attention interface, its caches, a submodule exchanged in its
parent), and only if :mod:`~smolbench.models.kernels.proof` finds it equal in this process.
"""
