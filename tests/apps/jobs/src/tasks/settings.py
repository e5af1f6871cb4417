from arq.connections import RedisSettings
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore")

    DATABASE_URL: str
    REDIS_QUEUE_HOST: str = "localhost"
    REDIS_QUEUE_PORT: int = 6379
    REDIS_QUEUE_USERNAME: str | None = None
    REDIS_QUEUE_PASSWORD: str | None = None
    API_KEY: str

    @property
    def queue(self) -> RedisSettings:
        return RedisSettings(
            host=self.REDIS_QUEUE_HOST,
            port=self.REDIS_QUEUE_PORT,
            username=self.REDIS_QUEUE_USERNAME,
            password=self.REDIS_QUEUE_PASSWORD,
        )


settings = Settings()
