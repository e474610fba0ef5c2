import asyncio, time
from contextlib import AsyncExitStack
from tests.security.http2 import *
from tests.security import http2
from tests.security.victim import SECONDS, Victim
PUB="/kyogo.v1.BrokerService/Publish"
CON="/kyogo.v1.BrokerService/Consume"

async def flood(connection, piece, seconds=SECONDS):
    end=time.monotonic()+seconds; n=0
    while time.monotonic()<end and not connection.closed:
        if not await connection.send(piece(n)): break
        n+=1
        await asyncio.sleep(0)
    return n

async def test_quiet(victim: Victim):
    async with victim.attacked("nothing", rss_mib=20):
        await asyncio.sleep(SECONDS)

async def test_reset_flood(victim):
    async with victim.attacked("stream resets", rss_mib=100):
        async with connected(victim.address) as c:
            block=header_block(PUB)
            def piece(n):
                return b"".join(frame(Kind.HEADERS, s, block, END_HEADERS)+reset(s) for s in range(1+200*n,1+200*n+200,2))
            n=await flood(c,piece)
            print("resets",n*100,c.closed,c.came)

async def test_reset_flood_many(victim):
    async with victim.attacked("stream resets, 20 connections", rss_mib=100):
        async def one():
            n=0; end=time.monotonic()+SECONDS
            while time.monotonic()<end:
              async with connected(victim.address) as c:
                block=header_block(CON)
                def piece(n):
                    return b"".join(frame(Kind.HEADERS, s, block, END_HEADERS)+reset(s) for s in range(1+200*n,1+200*n+200,2))
                n+=await flood(c,piece,end-time.monotonic())
            return n
        print(sum(await asyncio.gather(*(one() for _ in range(20)))))

async def test_ping_flood(victim):
    async with victim.attacked("pings", rss_mib=60):
        async with connected(victim.address) as c:
            n=await flood(c,lambda n: ping()*100)
            print("pings",n*100,c.closed,c.came)

async def test_settings_flood(victim):
    async with victim.attacked("settings", rss_mib=60):
        async with connected(victim.address) as c:
            n=await flood(c,lambda n: settings((4,65535))*100)
            print(n*100,c.closed,c.came)

async def test_ping_flood_unread(victim):
    async with victim.attacked("pings, answers not read", rss_mib=60):
        host,_,port=victim.address.rpartition(":")
        r,w=await asyncio.open_connection(host,int(port),limit=1)
        w.write(PREFACE+settings()); 
        r._transport.pause_reading()
        end=time.monotonic()+SECONDS;n=0
        while time.monotonic()<end:
            w.write(ping()*1000); n+=1000
            try:
                await asyncio.wait_for(w.drain(),0.2)
            except (TimeoutError,OSError) as e: print(type(e)); break
        print(n)
        w.close()

async def test_many_connections(victim):
    async with victim.attacked("2,000 connections", rss_mib=400):
        async with AsyncExitStack() as stack:
            cs=[await stack.enter_async_context(connected(victim.address)) for _ in range(2000)]
            await asyncio.sleep(0.5)
            print("closed",sum(c.closed for c in cs), victim.process.num_fds())

async def test_silent(victim):
    async with victim.attacked("1,000 silent connections", rss_mib=400):
        async with AsyncExitStack() as stack:
            cs=[await stack.enter_async_context(connected(victim.address,hello=b"" if n%2 else PREFACE[:10])) for n in range(1000)]
            t=time.monotonic()
            while time.monotonic()-t<25 and not all(c.closed for c in cs):
                await asyncio.sleep(0.5)
            print("closed",sum(c.closed for c in cs), time.monotonic()-t, victim.process.num_fds())

async def test_half_calls(victim):
    async with victim.attacked("half calls", rss_mib=400):
        async with connected(victim.address) as c:
            for s in range(1,40001,2):
                await c.send(http2.call(PUB,s))
                if s%1000==1: await asyncio.sleep(0)
            await asyncio.sleep(2)
            print(c.came,c.closed)

async def test_partial(victim):
    async with victim.attacked("half messages", rss_mib=4000):
        async with connected(victim.address) as c:
            body=message(bytes(8<<20))[:7<<20]
            async def one(s):
                await c.send(http2.call(PUB,s))
                return await c.send_data(s,body,seconds=3)
            print([x for x in await asyncio.gather(*(one(1+2*s) for s in range(100)))][:100], c.closed,c.window,c.initial_window)

async def test_bomb(victim):
    import zlib
    body=zlib.compress(bytes(512<<20),9,31) if False else None
    co=zlib.compressobj(9,zlib.DEFLATED,31); out=b"".join(co.compress(bytes(16<<20)) for _ in range(64))+co.flush()
    print(len(out))
    async with victim.attacked("bomb", rss_mib=4000):
        async with connected(victim.address) as c:
            await c.send(http2.call(PUB,1,[("grpc-encoding","gzip")]))
            print(await c.send_data(1,message(out,compressed=True),seconds=5))
            await c.send(frame(Kind.DATA,1,b"",END_STREAM))
            await asyncio.sleep(2)
            print(c.came,c.trailers)
