"""`--dry-run` with `--measure` and `--profile`, as a user types it."""

import json

import pytest


class TestCommand:
    @pytest.fixture
    def config(self, tiny_config, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("NSA_EVAL_PROFILES", str(tmp_path / "profiles"))
        file = tmp_path / "tiny.yaml"
        file.write_text(json.dumps(tiny_config()))
        return str(file)

    def call(self, capsys, *arguments):
        from nsa_eval.cli import main

        try:
            code = main([str(a) for a in arguments]) or 0
        except SystemExit as stop:
            code = stop.code or 0
        out = capsys.readouterr()
        return code, out.out, out.err

    def test_a_run_leaves_profiles_that_the_next_plan_is_from(self, config, capsys, tmp_path):
        code, out, _ = self.call(capsys, "run", config, "--dry-run")
        assert code == 0
        assert "nothing is known of these models' pace" in out
        assert not (tmp_path / "profiles").exists(), "a plan writes nothing"
        assert self.call(capsys, "run", config, "-q", "-o", "first", "--limit", "2")[0] == 0
        [profile] = (tmp_path / "profiles").iterdir()
        code, out, _ = self.call(capsys, "run", config, "--dry-run")
        assert "for 4 of 4 jobs" in out
        assert "from the profile of first" in out
        moved = profile.rename(tmp_path / "from-elsewhere.json")
        _, out, _ = self.call(capsys, "run", config, "--dry-run", "--profile", moved)
        assert "from the profile of first" in out
        code, out, _ = self.call(capsys, "run", config, "--dry-run", "--measure")
        assert code == 0
        assert "just now" in out
        assert len(list((tmp_path / "profiles").iterdir())) == 1, "a measurement is kept"

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (["--measure"], "add --dry-run"),
            (["--profile", "x"], "add --dry-run"),
            (["--dry-run", "--measure", "--profile", "x"], "leave one out"),
            (["--dry-run", "--profile", "none"], "no such file or folder"),
        ],
    )
    def test_flags_that_mean_nothing_are_refused(self, config, capsys, flags, said):
        code, _, err = self.call(capsys, "run", config, *flags)
        assert code != 0
        assert said in err
