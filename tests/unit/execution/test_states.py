from harness.records import Kind, State


def test_a_trial_that_works_leaves_its_values(execute, make_trial):
    ran = execute(make_trial("ok"))
    (record,) = ran.records
    assert record.state is State.OK, record.failure
    assert [(v.labels, v.samples, v.kind) for v in record.values] == [
        ({"part": "first"}, [1.5, 3.0], Kind.MEASURED),
        ({"part": "second"}, [0.1, 0.2], Kind.MEASURED),
    ]
    assert record.plan_digest
    assert "pydantic" in record.provenance.packages
