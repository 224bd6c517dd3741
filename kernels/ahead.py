import sys, re, subprocess, os, itertools
import triton, triton.language as tl
from triton.compiler import ASTSource
from triton.backends.compiler import GPUTarget
from sce_fast.kernels.sce_forward import sce_forward_kernel as F
CUOBJ=os.path.join(os.path.dirname(triton.__file__),"backends/nvidia/bin/cuobjdump")
def compile_forward(arch, D, head, tail, bm, bn, warps, stages, product, precision, fixed, out=True, batch=False, queue=True):
    names={"bf16":tl.bfloat16,"fp16":tl.float16,"fp32":tl.float32}
    pt="*"+product
    sig={}
    const=dict(scalars=None,D=D,HEAD=head,TAIL=tail,BLOCK_ROWS=bm,BLOCK_CANDIDATES=bn,PRODUCT=names[product],PRECISION=precision,FIXED=fixed,STUDENT_OUTPUT=out,HAS_BATCH=batch,HAS_QUEUE=queue,EVEN_BATCH=False,EVEN_QUEUE=True,PER_VIEW=False,SKIP_OWN_VIEW=False)
    if not batch: const["batch_keys"]=None
    if not queue: const["queue"]=None
    div=[]
    for i,n in enumerate(F.arg_names):
        if n in const: sig[n]="constexpr"
        elif n in("query","key","batch_keys","queue"): sig[n]=pt; div.append(i)
        elif n in("statistics","outputs"): sig[n]="*fp32"; div.append(i)
        elif n in("temperature","target_temperature"): sig[n]="fp32"
        else:
            sig[n]="i32"
            if n.endswith("stride"): div.append(i)
    src=ASTSource(F,sig,const,{(i,):[["tt.divisibility",16]] for i in div})
    c=triton.compile(src,target=GPUTarget("cuda",arch,32),options=dict(num_warps=warps,num_stages=stages))
    path=f"/tmp/x{os.getpid()}.cubin"
    open(path,"wb").write(c.asm["cubin"])
    o=subprocess.run([CUOBJ,"-res-usage",path],capture_output=True,text=True).stdout
    m=re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",o)
    return int(m[1]),int(m[2]),c.metadata.shared
if __name__=="__main__":
    import time
    for line in sys.stdin:
        a=line.split()
        if not a: continue
        arch,D,head,tail,bm,bn,w,st=map(int,a[:8])
        t=time.time()
        try: r=compile_forward(arch,D,head,tail,bm,bn,w,st,a[8],a[9],a[10]=="1",*(x=="1" for x in a[11:]))
        except Exception as e: r=repr(e)[:200]
        print(line.strip(),"->",r,f"{time.time()-t:.1f}s",flush=True)
