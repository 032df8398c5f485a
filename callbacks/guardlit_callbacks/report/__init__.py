"""One page from run folders. Imports figures and the composite, neither torch nor Lightning."""
