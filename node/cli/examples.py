"""What docs/cli.md shows of every verb: a call and what it prints, and when its exit status is 1."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, str] = {
    "serve": r"""
$ luminode serve --config /etc/luminode/config.yaml
2026-03-02T08:14:37Z [info     ] node.started       pid=812 roles=['deliver', 'enhance', 'gather', 'receive']
2026-03-02T08:14:39Z [info     ] receiver.started   ae_title=LUMINODE listen=0.0.0.0:11112 tls=False
2026-03-02T08:15:13Z [info     ] series.closed      because=release instances=24 series=1
2026-03-02T08:15:14Z [info     ] series.routed      action=enhance jobs=[1] rule=CT series=1
2026-03-02T08:15:16Z [info     ] job.done           engine=ct-nlm instances=24 job=1 seconds=2.49 series=1
2026-03-02T08:15:17Z [info     ] delivery.sent      delivery=1 destination=pacs instances=24 seconds=0.746
""",
    "demo": r"""
$ luminode demo
CT LUNG LOW DOSE 1.25 STD  48 instances
  closed by    release
receive    wait   queue  enhance  derive  deliver  last slice to PACS
 1.08 s  1.07 s  0.11 s  13.13 s  0.66 s   1.53 s             19.34 s
  noise        37.8 -> 19.3 HU (-49 %), mean change -0.00 HU
  derived      series 1003 'LUNG LOW DOSE 1.25 STD [LUM]', 48 of 48 in the PACS
  UID          2.25.227389647246288170363729443904078904563
  picture      demo-out/20260302-081437/ct-1.png
The PACS holds every derived instance.  56 s in all. Log: demo-out/20260302-081437/node.log
""",
    "pacs": r"""
$ luminode pacs --folder var/pacs --move-to WS1=127.0.0.1:11114
PACS PACS listens on 127.0.0.1:11113, keeps instances in var/pacs
""",
    "check": r"""
$ luminode check
ok   config.yaml              valid, digest cf2d2a0e4475
ok   database                 opens, schema up to date
ok   provenance               6 records, chain holds
ok   spool                    77.4 GB free, C-STORE is refused below 20.0 GB
ok   gpu                      there is none here, or no driver: learned engines run on the CPU
ok   TensorRT                 not installed
ok   TensorRT for RTX         1.7.1.116
ok   engine ct-denoise        ct-cnn 1.0.0, cnn, onnx on cpu, weights cbe4627f847d, loaded in 0.75 s
FAIL destination pacs         10.0.0.9:104 cannot be reached: nobody listens there
""",
    "plans": r"""
$ luminode plans --for 86,89
engine  precision  flavour       for                  state                   fault  hint
ct-cnn  fp16       tensorrt_rtx  capability 8.6, 8.9  built  1.8 MB in 1.6 s
ct-cnn  fp32       tensorrt_rtx  capability 8.6, 8.9  built  2.7 MB in 1.4 s
$ luminode plans
engine  precision  flavour       state
ct-cnn  fp16       tensorrt_rtx  ready  for capability 8.6, 8.9
ct-cnn  fp32       tensorrt_rtx  ready  for capability 8.6, 8.9
no GPU here: the CPU serves; --for 86,89 builds for GPUs elsewhere
""",
    "route": r"""
$ luminode route scans/mr
2.25.178496939178438778227761155027519299149  MR, 20 instances
  enhance to pacs by rule MR: the rule's conditions all hold
    no  CT: Modality CT  (found MR)
    yes CT: ImageType not LOCALIZER  (found ORIGINAL\PRIMARY\M\ND\NORM)
    yes CT: InstanceCount at least 3  (found 20)
    yes MR: Modality MR  (found MR)
    yes MR: InstanceCount at least 3  (found 20)
""",
    "enhance": r"""
$ luminode enhance scans/ct --engine ct-nlm --output out
series UID                                   sources  made  noise before  after  change   folder          reason
2.25.183581004820817940247103123124404725504  24      24    49            43.2   0.00409  out/series-001
""",
    "send": r"""
$ luminode send LUMINODE@127.0.0.1:11112 scans --from CT1 --associations 4
44 of 44 sent in 0.55 s (80/s)
""",
    "echo": r"""
$ luminode echo pacs
ok: answers C-ECHO with 0000H success (14 ms)
""",
    "provenance": r"""
$ luminode provenance 2.25.6504291340783327675277636731768309314
what is known of 2.25.6504291340783327675277636731768309314

source series 2.25.183581004820817940247103123124404725504, generation 1
  received       24 instances from CT1, 2026-03-02 08:15:12
  closed         2026-03-02 08:15:13 by release
  decision       enhance by rule CT. the rule's conditions all hold
                 CT: Modality CT: held (CT)
  config         cf2d2a0e44755d2c047661b324efaeda6b292dca35d0d28becf6e49dc1c962bb
  job 1
  engine         ct-nlm 1.0.0, strength 0.6
  weights        5084ad2121c06e0980ed5355be9d0b692aed63ec255d4fc386731a88d40b5d5c
  state          DONE, attempt 1
  derived        24 instances in series 2.25.6504291340783327675277636731768309314
  runtime        numpy
  figures        largest_change 83.2, mean_change 0.00409, noise_after 43.2, noise_before 49
  delivery       1 to pacs: SENT

records of the chain
       1  2026-03-02 08:15:13  series.routed          24887697ae8356f2
       3  2026-03-02 08:15:16  series.derived         175d7d586a96f7ab
       4  2026-03-02 08:15:17  series.delivered       821d8eac759d86d6

$ luminode provenance --verify
the chain holds: 6 records
""",
    "series list": r"""
$ luminode series list --state routed --limit 2
id  state   modality  instances  gen  from  last received        closed   decision     series UID
2   ROUTED  MR        20         1    CT1   2026-03-02 08:15:12  release  enhance: MR  2.25.1784969391784387
1   ROUTED  CT        24         1    CT1   2026-03-02 08:15:12  release  enhance: CT  2.25.1835810048208179
""",
    "series show": r"""
$ luminode series show 1
series UID     2.25.183581004820817940247103123124404725504
study UID      2.25.329575293096845787905074688399934947774
from           CT1 to LUMINODE
generation     1
modality       CT
state          ROUTED
instances      24
received       2026-03-02 08:15:12 to 2026-03-02 08:15:12
closed         2026-03-02 08:15:13 release
config digest  cf2d2a0e44755d2c047661b324efaeda6b292dca35d0d28becf6e49dc1c962bb
shape          24 x 512 x 512
spacing        1.25 x 0.7 x 0.7 mm

decision: enhance by rule CT  the rule's conditions all hold
rule  keyword        wanted         found                   held
CT    Modality       CT             CT                      yes
CT    ImageType      not LOCALIZER  ORIGINAL\PRIMARY\AXIAL  yes
CT    InstanceCount  at least 3     24                      yes

job  state  engine  attempt  failure
1    DONE   ct-nlm  1
""",
    "series retry": r"""
$ luminode series retry 1
series 1 will be routed again
""",
    "series cancel": r"""
$ luminode series cancel 1
series 1: 2 cancelled
""",
    "jobs list": r"""
$ luminode jobs list
id  state  series  rule  engine  attempt  queued               failure
2   DONE   2       MR    mr-nlm  1        2026-03-02 08:15:14
1   HELD   1       CT    ct-nlm  2        2026-03-02 08:15:13  its process died
""",
    "jobs show": r"""
$ luminode jobs show 1
series        1
rule          CT
engine        ct-nlm
strength      0.6
state         RUNNING
attempt       1
destinations  pacs
queued        2026-03-02 08:15:13
started       2026-03-02 08:15:14
progress      decode 100%, survey 100%, enhance 40%
""",
    "jobs retry": r"""
$ luminode jobs retry 1
job 1 is queued
$ luminode jobs retry --held
4 jobs are queued
""",
    "jobs cancel": r"""
$ luminode jobs cancel 1
error job 1 was moved by somebody else, or is in no state that allows this (it is DONE)
      read it again
""",
    "deliveries list": r"""
$ luminode deliveries list
id  state    destination  what                   done   attempt  queued               next try             failure
3   PENDING  pacs         derived                12/20  3        2026-03-02 08:15:17  2026-03-02 08:16:02  no answer
2   SENT     pacs         derived                24/24  1        2026-03-02 08:15:16
1   SENT     archive      originals of series 1  24/24  1        2026-03-02 08:15:12
""",
    "deliveries show": r"""
$ luminode deliveries show 1
destination         pacs
what                derived
state               FAILED
done                23 of 24
attempt             1
queued              2026-03-02 08:15:16
finished            2026-03-02 08:15:17
failure             1 instances refused: A900H data set does not match SOP class (1); 23 of 24 instances are there
derived series UID  2.25.6504291340783327675277636731768309314
SOP instance UID                            status  comment
2.25.32957529309684578790507468839993494777  A900H   Missing attribute
""",
    "deliveries retry": r"""
$ luminode deliveries retry 1
delivery 1 is pending
""",
    "deliveries cancel": r"""
$ luminode deliveries cancel 2
delivery 2 is cancelled
""",
    "deliveries readdress": r"""
$ luminode deliveries readdress pacs
3 deliveries and 1 jobs of pacs have its address of now
""",
    "commitments list": r"""
$ luminode commitments list
id  state  from  instances  failed  asked                told                 why not
2   READY  CT1   210        1       2026-03-02 08:22:30                       10.1.2.3:105 cannot be reached: no answer
1   TOLD   CT1   24         0       2026-03-02 08:15:30  2026-03-02 08:15:31
""",
    "commitments show": r"""
$ luminode commitments show 2
transaction UID  1.2.840.99.2
from             CT1 at 10.1.2.3 to LUMINODE
state            READY
promise          held
instances        210, not committed: 1
asked            2026-03-02 08:22:30
looked at        2026-03-02 08:22:31
told             not yet: 10.1.2.3:105 cannot be reached: no answer
listens at       10.1.2.3:105
SOP instance UID  reason  meaning
1.2.840.99.2.17   0112H   not here
""",
    "config show": r"""
$ luminode config show
{
  "node": {
    "ae_title": "LUMINODE",
    "listen": {
      "host": "0.0.0.0",
      "port": 11112
    },
    ...
""",
    "config explain": r"""
$ luminode config explain node.listen
node.listen
  Address and port to accept associations on. 0.0.0.0 is every interface, 127.0.0.1 this machine alone. Port 104, the well-known one, needs a privilege.
  type: host:port
  default: 0.0.0.0:11112
  a change takes effect when the node starts again
""",  # noqa: E501 - as it is printed, which a test compares
    "config schema": r"""
$ luminode config schema > config.schema.json
""",
    "config history": r"""
$ luminode config history
2026-03-02T10:40:02+00:00  9b1f0c6a5d7e4a0b7f4a3e1d8c2b6a5f4e3d2c1b0a9f8e7d6c5b4a3928170605
--- before
+++ after
@@ -62,3 +62,3 @@
   ct-denoise:
     engine: ct-nlm
-    strength: 0.6
+    strength: 0.5
2026-03-02T08:14:37+00:00  cf2d2a0e44755d2c047661b324efaeda6b292dca35d0d28becf6e49dc1c962bb
""",
    "db upgrade": r"""
$ luminode db upgrade
the schema is up to date
""",
    "db rebuild": r"""
$ luminode db rebuild
the old database is kept as luminode.db.damaged-20260302-091500
318 instances were found in the spool and recorded
""",
    "health": r"""
$ luminode health
FAIL gather    destination pacs         10.0.0.9:104 cannot be reached: nobody listens there
ok   deliver   process
ok   deliver   loop
ok   enhance   process
ok   enhance   loop
ok   enhance   worker
ok   gather    process
ok   gather    loop
ok   gather    scheduler
ok   gather    database
ok   gather    configuration
ok   receive   process
ok   receive   door
ok   receive   spool
ok   node      process
ok   node      roles
""",
    "backup": r"""
$ luminode backup /backup/luminode-2026-03-02
/backup/luminode-2026-03-02: the database and 318 files, 166.7 MB
""",
    "restore": r"""
$ luminode restore /backup/luminode-2026-03-02
318 files and the database are back
41 series were done when it was made; their records have no files
""",
    "spool fsck": r"""
$ luminode spool fsck --verify
88 files, 88 records
1 that are not what was received:
  3f/9a0c2b7d5e6f18293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f9012.dcm
""",
}
"""Verb -> calls with what they print. Long lines are as they are: a row of a table is one line."""

STATUS_1: Mapping[str, str] = {
    "serve": "the store cannot be used",
    "demo": "a derived instance is missing in the PACS at the end",
    "check": "anything is not in order; a line that says `note` is",
    "plans": "a plan could not be built, there is no GPU to build for, or a plan that the GPU of this host would load "
    "is missing, stale or refused",
    "health": "the node does not run here, or any part of it does not work",
    "backup": "it could not be made; nothing is left of it",
    "restore": "there is something in its place already, it is not whole, or what was put back does not verify",
    "db rebuild": "the node runs, the database is sound, or it is PostgreSQL",
    "route": "no DICOM series is there",
    "enhance": "a series failed, or no DICOM series is there. A series that is not for this engine is no failure: "
    "its reason is told",
    "send": "the peer does not hold every file, or there is no file",
    "echo": "the peer does not answer, or not with success",
    "provenance": "nothing is known of the UID, or the chain does not hold",
    "spool fsck": "anything is missing, corrupt or without a record",
    "series show": "there is no such series",
    "series retry": "there is no such series, it is still open, or retention has removed its instances",
    "series cancel": "there is no such series",
    "jobs show": "there is no such job",
    "jobs retry": "there is no such job, it has not ended, or retention has removed what it needs",
    "jobs cancel": "there is no such job, or it is done",
    "deliveries show": "there is no such delivery",
    "deliveries retry": "there is no such delivery, or it has not ended",
    "deliveries cancel": "there is no such delivery, or it has ended",
    "commitments show": "there is no such commitment",
}
"""When a verb ends with 1 besides where its store cannot be used."""

MORE: Mapping[str, str] = {
    "health": """
Each process of the node writes a sign of life into `spool/health` every two seconds, with what is wrong with its
parts: a row that cannot be written, a file that cannot be made durable, a loop that does not come round, a worker that
does not get on, a PACS that does not answer C-ECHO. What breaks is told within 15 seconds. The verb reads these files
alone: it works when the database does not.
""",
    "backup": """
While the node runs. What was acknowledged to a scanner before it began is in it, unless it was delivered: the files of
what is done are left out, `--whole` takes them along. See [backup.md](operations/backup.md).
""",
    "restore": """
To the database and the spool that config.yaml names, which must hold nothing else. Every file is verified before
anything is touched; one that was cut off may be run again.
""",
    "db rebuild": """
What was received and not yet removed by retention comes back as series from the AE title `RECOVERED`; what was made of
it is made again, with the same UIDs and bytes. Records of what is done, and provenance, are only in the old file.
""",
    "serve": """
Starts one process a role and starts a dead one again. SIGTERM ends it in order: no new associations, what is
under way is finished or put back. SIGHUP reads config.yaml again. `--role` runs one role alone, for one container
a role on one PostgreSQL database and one spool.
""",
    "enhance": """
The derivation date is the present time, or that of the environment variable SOURCE_DATE_EPOCH: with it, the
same call makes the same bytes. Each series has a folder of its own below the output folder.
""",
    "check": """
For each engine: what it runs on, and where there is a GPU why not on what is faster, and its plans. `note` is before
what is in order and yet worth a look, a plan that is not built yet for example. Also lists folders of engines that are
broken and left out. `--offline` asks no destination.
""",
    "plans": """
Without an option: the plans of the engines, for the GPUs of this host or, where it has none, for those that they were
built for. `--build` builds what is missing for these GPUs; a node does so by itself, in the background. `--for` needs
no GPU and builds with TensorRT for RTX. See [gpu.md](operations/gpu.md).
""",
    "config explain": """
Without a key: docs/configuration.md, whole.
""",
    "spool fsck": """
A node does the same at its start and daily. Files younger than five minutes are not adopted: their record may
be on its way.
""",
    "series cancel": """
What is done stays done: what a PACS holds is not taken back.
""",
}
"""What its help leaves out."""
