"""Fetches pinned packages with their ordinary clients and unpacks them once into a cache folder.

Standard library only. Nothing inside a package is run.
"""
import os, re, shutil, subprocess, sys, tarfile, tempfile, zipfile


class Packages:
    """A cache folder of unpacked packages, one sub-folder a pinned package."""

    def __init__(self, cache):
        self.cache = os.path.abspath(cache)
        os.makedirs(self.cache, exist_ok=True)

    def _once(self, spec, fetch):
        """The folder of `spec`; `fetch(tmp)` fills it the first time and returns the part to keep, or None."""
        folder = os.path.join(self.cache, re.sub(r'[^\w.]+', '-', spec).strip('-'))
        if not os.path.isdir(folder):
            with tempfile.TemporaryDirectory(dir=self.cache) as tmp:
                os.chmod(tmp, 0o777)  # apt downloads as its own user
                part = fetch(tmp)
                if part is None:
                    return None
                shutil.move(part, folder)
        return folder

    @staticmethod
    def _only(tmp, suffix):
        return os.path.join(tmp, next(f for f in os.listdir(tmp) if f.endswith(suffix)))

    def npm(self, spec):
        """`name@version` of an npm package."""
        def fetch(tmp):
            subprocess.run(['npm', 'pack', '--silent', spec], cwd=tmp, check=True, stdout=subprocess.DEVNULL)
            with tarfile.open(self._only(tmp, '.tgz')) as tar:
                tar.extractall(os.path.join(tmp, 'out'), filter='data')
            return os.path.join(tmp, 'out', 'package')
        return self._once(spec, fetch)

    def wheel(self, spec):
        """`name==version` of a Python package that ships a wheel for every platform."""
        def fetch(tmp):
            subprocess.run([sys.executable, '-m', 'pip', 'download', '-q', '--disable-pip-version-check', '--no-deps',
                            '--only-binary', ':all:', '-d', tmp, spec], check=True)
            with zipfile.ZipFile(self._only(tmp, '.whl')) as z:
                z.extractall(os.path.join(tmp, 'out'))
            return os.path.join(tmp, 'out')
        return self._once(spec, fetch)

    def deb(self, spec):
        """`name=version` of a Debian package; None where there is no Debian client or it does not have it."""
        def fetch(tmp):
            if not (shutil.which('apt-get') and shutil.which('dpkg-deb')):
                return None
            if subprocess.run(['apt-get', 'download', '-qq', spec], cwd=tmp).returncode:
                return None
            subprocess.run(['dpkg-deb', '-x', self._only(tmp, '.deb'), os.path.join(tmp, 'out')], check=True)
            return os.path.join(tmp, 'out')
        return self._once(spec, fetch)
