from __future__ import annotations
import numpy as np
def load(path):
    if path is None:
        from pydoc_data.topics import topics
        return "\n".join(topics[k] for k in sorted(topics)).encode()
    return open(path,'rb').read()
def batch(text, seq, size, seed, step, index):
    rng=np.random.default_rng([seed,step,index]); o=rng.integers(0,len(text)-seq,size)
    a=np.frombuffer(text,dtype=np.uint8); w=np.stack([a[i:i+seq+1] for i in o]).astype(np.int64)
    return w[:,:-1],w[:,1:]
