"""Networks of any size: where units go (slots), and the graph of one network rewritten for the merge of n."""
