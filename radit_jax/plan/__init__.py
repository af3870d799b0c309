"""What a run on a TPU slice would hold, take and cost, asked of the TPU compiler: no TPU, no weights."""
