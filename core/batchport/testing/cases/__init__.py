"""The cases of the conformance suite, a module for each thing that a backend must be able to do.

Composed by BackendConformance. Each case is one method whose docstring says in a sentence what must hold.
A case that does not apply to a backend calls pytest.skip, and its reason begins with the fact.
"""
